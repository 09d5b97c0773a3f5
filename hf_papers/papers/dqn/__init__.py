"""Deep Q-learning: a network learns to act from rewards alone, by replaying what it has lived through."""

from hf_papers.registry import Paper


PAPER = Paper(
    key="dqn",
    title="Human-level control through deep reinforcement learning",
    authors="Volodymyr Mnih, Koray Kavukcuoglu, David Silver and others",
    year=2013,
    arxiv="1312.5602",
    summary="Q-learning with a neural network, made stable by replayed experience and a target network.",
    config="configuration_dqn:PaperDqnConfig",
    models={"AutoModel": "modeling_dqn:PaperDqnModel"},
    task="training_dqn:DqnTask",
    parameters={"nature": 1_686_180, "nips": 677_172, "cartpole": 67_586},
    pipeline_tag="reinforcement-learning",
    tags=("reinforcement-learning", "deep-reinforcement-learning", "q-learning", "gymnasium"),
)
