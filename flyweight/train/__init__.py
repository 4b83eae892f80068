"""One plain loop, one TrainState that a checkpoint holds whole, and small modules around them.

Objectives, optimisers and schedules are files of their own; nothing here knows a face.
"""
