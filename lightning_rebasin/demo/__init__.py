"""The main job on real data: train twice, watch the barrier, match, merge, report."""
