"""nbgrader's settings for this course: run its commands in this folder.

``nbgrader generate_assignment`` and formgrader then make the same releases as
``lmcourse release``, and ``nbgrader autograde`` and formgrader's button grade as
``lmcourse grade`` does.
"""

from lmcourse.grading import converters
from lmcourse.homework import release

c = get_config()  # noqa: F821

release.configure(c)
converters.configure(c)
