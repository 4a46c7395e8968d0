//! Typed objects from JSON values and back, by way of text.
//!
//! The types of the API are read from text and written to it everywhere. A second reader and writer of each, from and to
//! values, would make the program larger for the sake of paths that are seldom taken.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The object that a value stands for.
pub(crate) fn from_value<K: DeserializeOwned>(value: &Value) -> serde_json::Result<K> {
    serde_json::from_str(&value.to_string())
}

/// The value of an object.
pub(crate) fn to_value<K: Serialize>(object: &K) -> serde_json::Result<Value> {
    serde_json::from_slice(&serde_json::to_vec(object)?)
}
