"""Proof and figures: verification, quality, reports."""
