"""Distillation: signals of a teacher, online or recorded, what a student learns from them, and students with ternary weights."""
