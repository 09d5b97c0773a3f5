"""Pictures of a pre-trained BERT."""


def draw_pretraining_figures(*a):
    return {}
