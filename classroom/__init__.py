"""Handouts for students and a grader that withstands a class.

One source: the graded functions are the bodies between solution markers in `kernels`, `minigpt` and `lessons`.
`classroom.source` finds, strips and replaces them; `classroom.exercises` says how each is judged; `classroom.handout`
writes the students' repository; `classroom.grading` grades one submission and `classroom.class_run` a class. Commands:
``python -m classroom --help``.
"""
