"""What people see: how much is said and how (mode), pictures of a model, screens of a growth, progress, completion of the shell."""
