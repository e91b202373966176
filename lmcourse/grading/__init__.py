"""Grade a class: strangers' code in one world, the reference in another.

`intake` reads a submission, `sandbox` and `inside` run it in the student's world,
`reference` judges what came out, `engine` joins the three over a class, `gradebook`
writes nbgrader's gradebook and feedback, `report` tells the teacher, and `sample_class`
writes submissions to try it all on.
"""
