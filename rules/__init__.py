"""Rules for operators, one file per family. A user's own rule file looks just like these."""
