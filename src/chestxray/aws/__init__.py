"""The same thing on AWS: each verb says what it will create and cost, and all of it can be found and removed again."""
