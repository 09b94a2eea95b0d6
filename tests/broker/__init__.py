"""Tests of coordinator.broker."""
