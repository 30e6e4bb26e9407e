"""Implements the losses of YOLOv3 and RetinaNet and the assignment of labels to anchors."""
