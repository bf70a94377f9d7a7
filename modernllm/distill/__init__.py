"""Distillation: teachers, losses, layer maps, projectors, and the objective that joins them."""
