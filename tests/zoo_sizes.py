"""The sizes of the zoo: small, and no two of them alike."""

HIDDEN, HEADS, FFN, VOCAB, LAYERS, POSITIONS = 32, 4, 72, 99, 2, 40
IMAGE, PATCH, LABELS, BUCKETS = 12, 4, 5, 20
EXPERTS, CHOSEN = 4, 2
