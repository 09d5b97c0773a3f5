from tests.common.cases import ModelCase
class Case(ModelCase):
    pass
