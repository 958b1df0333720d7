"""A growth as a page that a person can read, keep and send: `onnxgrow report`, and what notebooks show of our objects."""
