"""The property-test kit: is this loss that loss, and does this objective keep to the contract?"""
