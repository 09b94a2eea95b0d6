"""MQTT brokers: who may use which topic, and the drivers that run or reach a broker."""
