"""From runs to claims: intervals, comparisons, figures."""
