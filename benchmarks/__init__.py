"""Speed and accuracy, measured: results are kept beside, as the programs wrote them."""
