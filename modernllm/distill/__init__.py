"""Distillation: signals of a teacher, online or recorded, and what a student learns from them."""
