from hf_papers.training.task import Task
class ClassificationTask(Task): pass
