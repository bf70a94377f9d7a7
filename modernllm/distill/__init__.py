"""Distillation: a teacher's signals, losses and layer maps, and students with ternary weights (1.58 bits)."""
