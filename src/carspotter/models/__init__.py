"""From arrays to runs: experiments, three sibling frameworks, metrics, recorded runs."""
