from hf_papers.training.task import Task
class TranslationTask(Task): pass
