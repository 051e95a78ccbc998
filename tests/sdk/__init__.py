"""Tests of providers' SDKs on a BridgeTransport, against local servers. All have the marker `sdk`."""
