"""Hand a run over: exports that equal the tuned model, a card made of measurements, the Hub and a Space."""
