"""Implements DarkNet-53, MobileNetV2 and ResNet."""
