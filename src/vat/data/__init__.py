# Empty on purpose: `vat.data.splits` is torch alone and must not import Lightning through its package.
