"""The definitions, in brief, as the page states them."""

from __future__ import annotations

METHODS_HTML = """<details id="methods"><summary>Definitions</summary><dl class="methods">
<dt>Layers</dt><dd>Numbered as Hugging Face's <code>hidden_states</code>: 0 is the output of the embeddings, k that
of block k. The last one is as the model returns it, after a final norm where it has one.</dd>
<dt>Levels</dt><dd>Tokens: every token whose attention mask is 1, special tokens included. Sentences: the mean of a
sentence's tokens, or another pooling where it is named. Vectors that are zero or not finite are left out and
counted.</dd>
<dt>Anisotropy</dt><dd>The mean cosine over distinct pairs of vectors, A = (‖s‖² − n) / (n(n − 1)) with s the sum of
the n unit vectors. 0 for directions spread evenly, 1 for vectors that all point one way. Nothing is clamped:
centred data comes out slightly below 0.</dd>
<dt>Standard error</dt><dd>Grouped jackknife: sentences are dealt into 64 groups, and each group in turn is left
out. Tokens of one sentence share a group, and so do up to 16 neighbours in the corpus, because they are not
independent.</dd>
<dt>Rogue dimensions</dt><dd>The anisotropy is a sum of one contribution a dimension, c<sub>j</sub> =
(s<sub>j</sub>² − Σu<sub>j</sub>²) / (n(n − 1)); the largest ones are listed.</dd>
<dt>Within, between, predicted</dt><dd>W is the mean cosine of two tokens of one sentence, B of two tokens of
different sentences. Predicted is the anisotropy of sentences that are the mean of their tokens taken at length 1:
what averaging alone gives. Sentences are means of tokens as they are, so the rest is what tokens of unlike length
do.</dd>
<dt>Cone axis</dt><dd>The top eigenvector of the covariance of the sentence vectors (centred). It points along the
mean; axes are compared by |cos|. The uncentred axis and the mean direction are other directions, and given with
it.</dd>
<dt>Geometry</dt><dd>Participation ratio (tr C)² / ‖C‖²; IsoScore (PR − 1) / (d − 1); effective rank, the
exponential of the entropy of the eigenvalues' shares; RankMe, the same of the singular values without
centring. They grow with n. Corrected for n: unbiased estimates of (tr C)² and ‖C‖² (Himeno &amp; Yamada 2014), of
independent vectors; a rank lacks at least its first-order bias.</dd>
<dt>Quality</dt><dd>How well the cosines of labelled pairs go with their labels: the AUC of two kinds, Spearman's
correlation with a score, or the mean reciprocal rank of a relevant text. Methods are fitted on three quarters of the
groups of pairs that share a text and tested on the fourth; scores are compared within a quarter. Errors are those of
the groups' influences (Obuchowski 1997).</dd>
<dt>Chance</dt><dd>Two random directions in d dimensions have a mean |cos| of about √(2 / (πd)). p is how often they
come as close as the two axes do.</dd>
</dl></details>"""
