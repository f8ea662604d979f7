"""Reports: from one internal report (a dict, see grading.py) to what people and other systems read."""
