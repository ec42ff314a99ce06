"""Tests of ernie_export, in folders that mirror the package; fakes and fixtures that several share lie beside them."""
