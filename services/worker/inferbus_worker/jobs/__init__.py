"""Chunks of jobs: run through the engines that answer requests, behind them in every queue."""
