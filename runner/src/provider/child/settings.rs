//! Reads a provider's own settings, and refuses what it does not know.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::provider::ProviderError;

/// The settings under one key of container.json, taken out one by one.
#[derive(Debug)]
pub struct Settings {
    name: &'static str,
    left: Map<String, Value>,
}

impl Settings {
    /// What is there for the provider `name`; nothing is as good as an empty object.
    ///
    /// # Errors
    /// [`ProviderError::Settings`], as for all below.
    pub fn new(name: &'static str, settings: Value) -> Result<Self, ProviderError> {
        match settings {
            Value::Null => Ok(Self { name, left: Map::new() }),
            Value::Object(left) => Ok(Self { name, left }),
            _ => Err(ProviderError::Settings { key: name.into(), reason: "it is not an object".into() }),
        }
    }

    fn error(&self, key: &str, reason: impl Into<String>) -> ProviderError {
        ProviderError::Settings { key: format!("{}.{key}", self.name), reason: reason.into() }
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        self.left.remove(key).filter(|value| !value.is_null())
    }

    /// A text.
    pub fn text(&mut self, key: &str) -> Result<Option<String>, ProviderError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) if !text.is_empty() => Ok(Some(text)),
            Some(_) => Err(self.error(key, "it is not a text, or empty")),
        }
    }

    /// A list of texts; none when it is not there.
    pub fn texts(&mut self, key: &str) -> Result<Vec<String>, ProviderError> {
        let wrong = "it is not a list of texts";
        let Some(value) = self.take(key) else { return Ok(Vec::new()) };
        let Value::Array(items) = value else { return Err(self.error(key, wrong)) };
        let texts = items.into_iter().map(|item| match item {
            Value::String(text) => Ok(text),
            _ => Err(self.error(key, wrong)),
        });
        texts.collect()
    }

    /// Names with a text each; none when it is not there.
    pub fn named_texts(&mut self, key: &str) -> Result<BTreeMap<String, String>, ProviderError> {
        let Some(value) = self.take(key) else { return Ok(BTreeMap::new()) };
        let Value::Object(items) = value else { return Err(self.error(key, "it is not an object of texts")) };
        let named = items.into_iter().map(|(name, value)| match value {
            Value::String(text)
                if !name.is_empty() && !name.contains(['=', '\0']) && !text.contains('\0') =>
            {
                Ok((name, text))
            }
            _ => Err(self.error(&format!("{key}.{name}"), "it is not a name with a text")),
        });
        named.collect()
    }

    /// A whole number from `least` to `most`.
    pub fn number(&mut self, key: &str, least: u64, most: u64) -> Result<Option<u64>, ProviderError> {
        match self.take(key) {
            None => Ok(None),
            Some(value) => match value.as_u64().filter(|number| (least..=most).contains(number)) {
                Some(number) => Ok(Some(number)),
                None => Err(self.error(key, format!("it is not a whole number from {least} to {most}"))),
            },
        }
    }

    /// True or false; `None` when it is not there.
    pub fn flag(&mut self, key: &str) -> Result<Option<bool>, ProviderError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(self.error(key, "it is neither true nor false")),
        }
    }

    /// Whatever is there, for a reader of its own; `null` when it is not.
    pub fn value(&mut self, key: &str) -> Value {
        self.take(key).unwrap_or_default()
    }

    /// Refuses whatever was not asked for.
    pub fn done(self) -> Result<(), ProviderError> {
        match self.left.keys().next() {
            None => Ok(()),
            Some(key) => Err(self.error(key, "this runner knows no such setting")),
        }
    }
}
