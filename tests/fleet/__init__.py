"""Tests of coordinator.fleet."""
