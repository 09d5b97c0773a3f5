def draw_figures(translator, sources, folder): return {}
