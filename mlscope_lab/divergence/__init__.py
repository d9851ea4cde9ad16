"""Where two models part ways: two sides run operation by operation, aligned, compared, judged, and the culprit named."""
