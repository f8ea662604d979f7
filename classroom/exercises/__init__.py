"""The exercises, a module a lesson: what each function is called with, typical mistakes, other right ways."""
