"""Where two models part ways: two sides run operation by operation, aligned, compared and judged."""
