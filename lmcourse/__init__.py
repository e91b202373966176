"""lmcourse: the teacher's tools. It builds the book and the homework, and grades."""


class CourseError(Exception):
    """Something a person can mend: the message says what is wrong and what to do."""
