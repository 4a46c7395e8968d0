//! What lists and maps have, and how they compare.

use super::{Evaluated, Key, List, Map, Text, Value};
use crate::cel::types::ListKind;
use crate::cel::{Cost, EvaluationError};

impl Key<'_> {
    fn rank(&self) -> (u8, i128, &str) {
        match self {
            Self::Bool(value) => (0, i128::from(*value), ""),
            Self::Int(value) => (1, i128::from(*value), ""),
            Self::Uint(value) => (1, i128::from(*value), ""),
            Self::String(text) => (2, 0, text),
        }
    }
}

impl PartialEq for Key<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.rank() == other.rank()
    }
}

impl Eq for Key<'_> {}

impl PartialOrd for Key<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key<'_> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl<'a> Key<'a> {
    /// The key that a value is, if it can be one.
    pub(in crate::cel) fn of(value: &Value<'a>) -> Option<Self> {
        Some(match value {
            Value::Bool(value) => Self::Bool(*value),
            Value::Int(value) => Self::Int(*value),
            Value::Uint(value) => Self::Uint(*value),
            Value::Double(value) if value.fract() == 0.0 && value.abs() < 1e19 => {
                #[expect(clippy::cast_possible_truncation, reason = "it is whole and in range")]
                let whole = *value as i128;
                match i64::try_from(whole) {
                    Ok(whole) => Self::Int(whole),
                    Err(_) => Self::Uint(u64::try_from(whole).ok()?),
                }
            }
            Value::String(text) => Self::String(text.clone()),
            _ => return None,
        })
    }

    /// The key as errors have it.
    pub(in crate::cel) fn shown(&self) -> String {
        match self {
            Self::Bool(value) => value.to_string(),
            Self::Int(value) => value.to_string(),
            Self::Uint(value) => value.to_string(),
            Self::String(text) => text.to_string(),
        }
    }

    /// Charges for looking for the key.
    pub(in crate::cel) fn charge(&self, cost: &mut Cost) -> Result<(), EvaluationError> {
        match self {
            Self::String(text) => cost.compare(text.len()),
            _ => Ok(()),
        }
    }

    pub(super) fn value(&self) -> Value<'a> {
        match self {
            Self::Bool(value) => Value::Bool(*value),
            Self::Int(value) => Value::Int(*value),
            Self::Uint(value) => Value::Uint(*value),
            Self::String(text) => Value::String(text.clone()),
        }
    }
}

impl<'a> List<'a> {
    pub(in crate::cel) fn len(&self) -> usize {
        match self {
            Self::Json(items, _) => items.len(),
            Self::Made(items) => items.len(),
        }
    }

    /// The item at a place, which is there.
    pub(in crate::cel) fn item(&self, index: usize, cost: &mut Cost) -> Evaluated<'a> {
        let item = match self {
            Self::Json(items, of) => {
                let item = items.get(index);
                item.map(|item| Value::from_json(item, &of.item, cost))
                    .transpose()?
            }
            Self::Made(items) => items.get(index).cloned(),
        };
        item.ok_or_else(|| EvaluationError::Index(index.to_string()))
    }

    /// All items, each charged for.
    pub(in crate::cel) fn items(&self, cost: &mut Cost) -> Result<Vec<Value<'a>>, EvaluationError> {
        cost.charge(self.len())?;
        (0..self.len()).map(|index| self.item(index, cost)).collect()
    }

    pub(in crate::cel) fn kind(&self) -> &'a ListKind {
        match self {
            Self::Json(_, of) => &of.kind,
            Self::Made(_) => &ListKind::Atomic,
        }
    }

    pub(in crate::cel) fn contains(
        &self,
        value: &Value<'a>,
        cost: &mut Cost,
    ) -> Result<bool, EvaluationError> {
        for index in 0..self.len() {
            if self.item(index, cost)?.equals(value, cost)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(super) fn equals(&self, other: &Self, cost: &mut Cost) -> Result<bool, EvaluationError> {
        if self.len() != other.len() {
            return Ok(false);
        }
        for index in 0..self.len() {
            let item = self.item(index, cost)?;
            // Most often the order is the same even where it does not matter.
            if item.equals(&other.item(index, cost)?, cost)? {
                continue;
            }
            let elsewhere = match self.kind() {
                ListKind::Atomic => false,
                ListKind::Set => other.contains(&item, cost)?,
                ListKind::Map(keys) => match other.find_keyed(&item, keys, cost)? {
                    Some(found) => item.equals(&other.item(found, cost)?, cost)?,
                    None => false,
                },
            };
            if !elsewhere {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Where the item with the same keys is.
    pub(in crate::cel) fn find_keyed(
        &self,
        item: &Value<'a>,
        keys: &[String],
        cost: &mut Cost,
    ) -> Result<Option<usize>, EvaluationError> {
        let Value::Object(wanted, _) = item else {
            return Ok(None);
        };
        let lengths = keys.iter().filter_map(|key| wanted.get(key)?.as_str());
        let length = lengths.map(str::len).sum();
        for index in 0..self.len() {
            cost.charge(keys.len())?;
            cost.compare(length)?;
            if let Value::Object(fields, _) = self.item(index, cost)?
                && keys.iter().all(|key| fields.get(key) == wanted.get(key))
            {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }
}

impl<'a> Map<'a> {
    pub(in crate::cel) fn len(&self) -> usize {
        match self {
            Self::Json(entries, _) => entries.len(),
            Self::Made(entries) => entries.len(),
        }
    }

    /// All keys, each charged for.
    pub(in crate::cel) fn keys(&self, cost: &mut Cost) -> Result<Vec<Value<'a>>, EvaluationError> {
        cost.charge(self.len())?;
        Ok(match self {
            Self::Json(entries, _) => entries
                .keys()
                .map(|key| Value::String(Text::Borrowed(key)))
                .collect(),
            Self::Made(entries) => entries.keys().map(Key::value).collect(),
        })
    }

    pub(in crate::cel) fn get(
        &self,
        key: &Value<'a>,
        cost: &mut Cost,
    ) -> Result<Option<Value<'a>>, EvaluationError> {
        let Some(key) = Key::of(key) else {
            return Err(EvaluationError::KeyType(key.type_of().to_string()));
        };
        key.charge(cost)?;
        match (self, key) {
            (Self::Json(entries, of), Key::String(name)) => {
                let found = entries.get(&*name);
                found
                    .map(|found| Value::from_json(found, &of.value, cost))
                    .transpose()
            }
            (Self::Json(..), _) => Ok(None),
            (Self::Made(entries), key) => Ok(entries.get(&key).cloned()),
        }
    }

    pub(super) fn equals(&self, other: &Self, cost: &mut Cost) -> Result<bool, EvaluationError> {
        if self.len() != other.len() {
            return Ok(false);
        }
        for key in self.keys(cost)? {
            let same = match (self.get(&key, cost)?, other.get(&key, cost)?) {
                (Some(a), Some(b)) => a.equals(&b, cost)?,
                _ => false,
            };
            if !same {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
