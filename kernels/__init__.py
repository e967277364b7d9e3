"""Kernels of RheoServe, installed as ``rheo_kernels``.

Shape letters used by every kernel and its reference:

====== =====================================================================
``B``  requests in the batch
``H``  KV heads; ``Hq`` query heads; ``G = Hq / H`` the GQA group size
``D``  head dimension
``P``  page size (tokens of one page)
``N``  logical pages (host pages); page 0 is SGLang's padding page
``F``  frames of one layer and KV head
``M``  width of the batch's page lists (pages of its longest request)
``S``  width of the selection (most pages any request and head may select)
====== =====================================================================

A *block* is what one page holds in one layer and KV head: ``[2, D * P]``, first K token-inner
(``[D, P]``, so that a dot product over ``D`` needs no horizontal reduction), then V row-major
(``[P, D]``). Frames and host pages share the layout, so moving a page is a plain copy.
LSE is the natural logarithm everywhere; an empty partial is ``(output 0, LSE -inf)``.
"""
