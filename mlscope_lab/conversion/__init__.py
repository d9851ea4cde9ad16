"""From one form of a model to another, each converted form cached and recorded as derived."""
