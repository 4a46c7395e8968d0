//! Walking values with their schema: field sets of values, differences, merging, removal.

use serde_json::{Map, Value};

use super::field_set::FieldSet;
use crate::custom::schema::{Merging as SchemaMerging, Schema};
use crate::schema::KindSchema;
use crate::schema::facts::{Field, ListType, Shape, TypeDef};

/// A place in an object: what is there, and what says how it merges.
#[derive(Clone, Copy)]
pub(super) enum Slot<'a> {
    /// In an object of a built-in kind.
    Fact {
        shape: Shape,
        field: Option<&'static Field>,
    },
    /// In a custom resource. At the root stands what every object has beside what the schema says.
    Custom { schema: &'a Schema, root: bool },
    /// Where no schema says anything: objects merge by their fields, all else is one value.
    Free,
}

/// How the value of a slot merges.
enum Merging<'a> {
    /// As one value.
    Atomic,
    Struct(Fields<'a>),
    Map(Slot<'a>),
    Set,
    Keyed(Vec<&'a str>, Slot<'a>),
}

/// The fields of a struct.
#[derive(Clone, Copy)]
enum Fields<'a> {
    Fact(&'static TypeDef),
    Custom { schema: &'a Schema, root: bool },
}

impl<'a> Fields<'a> {
    /// The slot of a field; a field that no schema has is one value, or free where such fields are kept.
    fn child(self, name: &str) -> Slot<'a> {
        match self {
            Self::Fact(definition) => definition.field(name).map_or(Slot::plain(Shape::Raw), Slot::of),
            Self::Custom { root: true, .. } if name == "metadata" => {
                Slot::root(KindSchema::object_meta().root())
            }
            Self::Custom { schema, .. } => schema.property(name).map_or(Slot::Free, |schema| Slot::Custom {
                schema,
                root: schema.is_embedded(),
            }),
        }
    }

    /// Whether the field is one of the schema's own, as opposed to one of many that it lets be.
    fn declares(self, name: &str) -> bool {
        match self {
            Self::Fact(_) => true,
            Self::Custom { schema, root } => {
                (root && matches!(name, "apiVersion" | "kind" | "metadata"))
                    || schema.property(name).is_some()
            }
        }
    }
}

impl<'a> Slot<'a> {
    pub(super) fn root(shape: Shape) -> Self {
        Self::plain(shape)
    }

    pub(super) fn custom(schema: &'a Schema) -> Self {
        Self::Custom { schema, root: true }
    }

    fn plain(shape: Shape) -> Self {
        Self::Fact { shape, field: None }
    }

    fn of(field: &'static Field) -> Self {
        Self::Fact {
            shape: field.shape.unwrapped(),
            field: Some(field),
        }
    }

    fn merging(self) -> Merging<'a> {
        match self {
            Self::Fact { shape, field } => Self::merging_of_fact(shape, field),
            Self::Custom { schema, root } => Self::merging_of_custom(schema, root),
            Self::Free => Merging::Map(Self::Free),
        }
    }

    fn merging_of_fact(shape: Shape, field: Option<&'static Field>) -> Merging<'a> {
        let atomic = field.and_then(|field| field.atomic);
        match shape {
            Shape::Struct(id) => {
                let definition = id.definition();
                if atomic.unwrap_or(definition.atomic) {
                    Merging::Atomic
                } else {
                    Merging::Struct(Fields::Fact(definition))
                }
            }
            Shape::Map(inner) if atomic != Some(true) => Merging::Map(Self::plain(inner.unwrapped())),
            Shape::List(inner) => match field.and_then(|field| field.list_type.as_ref()) {
                Some(ListType::Set) => Merging::Set,
                Some(ListType::Map(keys)) => Merging::Keyed(keys.clone(), Self::plain(inner.unwrapped())),
                Some(ListType::Atomic) | None => Merging::Atomic,
            },
            _ => Merging::Atomic,
        }
    }

    fn merging_of_custom(schema: &'a Schema, root: bool) -> Merging<'a> {
        if schema.is_atomic() {
            return Merging::Atomic;
        }
        match schema.merging() {
            SchemaMerging::Atomic => Merging::Atomic,
            SchemaMerging::Set => Merging::Set,
            SchemaMerging::Keyed(keys, items) => {
                let item = Self::Custom {
                    schema: items,
                    root: items.is_embedded(),
                };
                Merging::Keyed(keys.iter().map(String::as_str).collect(), item)
            }
            SchemaMerging::Map(values) => Merging::Map(Self::Custom {
                schema: values,
                root: values.is_embedded(),
            }),
            SchemaMerging::Fields => Merging::Struct(Fields::Custom { schema, root }),
        }
    }

    /// What a server fills in for a field of the value.
    fn default_of(self, name: &str) -> Option<Value> {
        match self {
            Self::Fact {
                shape: Shape::Struct(id),
                ..
            } => id
                .definition()
                .field(name)
                .and_then(|field| field.default.clone()),
            Self::Custom { schema, .. } => schema.property(name).and_then(Schema::default_value).cloned(),
            Self::Fact { .. } | Self::Free => None,
        }
    }

    /// Whether absence shows: the value is a pointer, a map or a list that is left out when empty.
    fn nullable(self) -> bool {
        match self {
            Self::Fact {
                shape,
                field: Some(field),
            } => field.pointer || (!matches!(shape, Shape::Struct(_)) && !field.zero_written),
            Self::Fact { field: None, .. } | Self::Custom { .. } | Self::Free => true,
        }
    }
}

fn step(name: &str) -> String {
    format!("f:{name}")
}

/// The step to an item of a keyed list; `None` if it has none of the keys.
fn key_step(keys: &[&str], item: Slot<'_>, value: &Value) -> Option<String> {
    let mut found = Map::new();
    for key in keys {
        let default = || item.default_of(key);
        if let Some(part) = value
            .get(*key)
            .filter(|part| !part.is_null())
            .cloned()
            .or_else(default)
        {
            found.insert((*key).to_owned(), part);
        }
    }
    // A key that is there only by default names nothing.
    let named = keys.iter().any(|key| value.get(*key).is_some());
    named.then(|| format!("k:{}", Value::Object(found)))
}

fn set_step(value: &Value) -> String {
    format!("v:{value}")
}

/// The fields that a value sets.
pub(super) fn collect(slot: Slot<'_>, value: &Value) -> FieldSet {
    let mut set = FieldSet::default();
    match (slot.merging(), value) {
        (Merging::Struct(fields), Value::Object(object)) => {
            for (name, value) in object {
                let mut child = collect(fields.child(name), value);
                child.member |= is_bare(value) || !fields.declares(name);
                set.insert(step(name), child);
            }
        }
        (Merging::Map(inner), Value::Object(object)) => {
            for (name, value) in object {
                let mut child = collect(inner, value);
                child.member = true;
                set.insert(step(name), child);
            }
        }
        (Merging::Keyed(keys, inner), Value::Array(items)) => {
            for item in items {
                if let Some(step) = key_step(&keys, inner, item) {
                    let mut child = collect(inner, item);
                    child.member = true;
                    set.insert(step, child);
                }
            }
        }
        (Merging::Set, Value::Array(items)) => {
            for item in items {
                set.insert(set_step(item), FieldSet::leaf());
            }
        }
        _ => set.member = true,
    }
    set
}

fn is_bare(value: &Value) -> bool {
    value.is_null() || value.as_object().is_some_and(Map::is_empty)
}

/// What differs between two values: fields that are new or changed, and fields that are gone.
#[derive(Default)]
pub(super) struct Difference {
    pub(super) changed: FieldSet,
    pub(super) removed: FieldSet,
}

pub(super) fn difference(slot: Slot<'_>, old: Option<&Value>, new: Option<&Value>) -> Difference {
    let mut found = Difference::default();
    let (old, new) = (old.filter(|v| !v.is_null()), new.filter(|v| !v.is_null()));
    let (old_value, new_value) = match (old, new) {
        (None, None) => return found,
        (None, Some(new)) => {
            found.changed = collect(slot, new);
            found.changed.member |= slot.nullable() || is_bare(new);
            return found;
        }
        (Some(old), None) => {
            found.removed = collect(slot, old);
            found.removed.member = true;
            return found;
        }
        (Some(old), Some(new)) => (old, new),
    };
    if old_value == new_value {
        return found;
    }
    match (slot.merging(), old_value, new_value) {
        (Merging::Struct(fields), Value::Object(old), Value::Object(new)) => {
            for name in old
                .keys()
                .chain(new.keys().filter(|name| !old.contains_key(*name)))
            {
                found.add(
                    step(name),
                    difference(fields.child(name), old.get(name), new.get(name)),
                );
            }
        }
        (Merging::Map(inner), Value::Object(old), Value::Object(new)) => {
            for name in old
                .keys()
                .chain(new.keys().filter(|name| !old.contains_key(*name)))
            {
                found.add(step(name), difference(inner, old.get(name), new.get(name)));
            }
        }
        (Merging::Keyed(keys, inner), Value::Array(old), Value::Array(new)) => {
            let find = |items: &'_ [Value], wanted: &str| -> Option<usize> {
                items
                    .iter()
                    .position(|item| key_step(&keys, inner, item).as_deref() == Some(wanted))
            };
            for item in old {
                if let Some(step) = key_step(&keys, inner, item) {
                    let other = find(new, &step).map(|at| &new[at]);
                    found.add(step, difference(inner, Some(item), other));
                }
            }
            for item in new {
                if let Some(step) = key_step(&keys, inner, item)
                    && find(old, &step).is_none()
                {
                    found.add(step, difference(inner, None, Some(item)));
                }
            }
        }
        (Merging::Set, Value::Array(old), Value::Array(new)) => {
            for item in old.iter().filter(|item| !new.contains(item)) {
                found.removed.insert(set_step(item), FieldSet::leaf());
            }
            for item in new.iter().filter(|item| !old.contains(item)) {
                found.changed.insert(set_step(item), FieldSet::leaf());
            }
        }
        _ => found.changed.member = true,
    }
    found
}

impl Difference {
    fn add(&mut self, step: String, child: Self) {
        self.changed.insert(step.clone(), child.changed);
        self.removed.insert(step, child.removed);
    }
}

/// `live` with everything that `applied` says.
pub(super) fn merge(slot: Slot<'_>, live: Option<&Value>, applied: &Value) -> Value {
    match (slot.merging(), live, applied) {
        (Merging::Struct(fields), Some(Value::Object(live)), Value::Object(applied)) => {
            let mut merged = live.clone();
            for (name, value) in applied {
                merged.insert(name.clone(), merge(fields.child(name), live.get(name), value));
            }
            Value::Object(merged)
        }
        (Merging::Map(inner), Some(Value::Object(live)), Value::Object(applied)) => {
            let mut merged = live.clone();
            for (name, value) in applied {
                merged.insert(name.clone(), merge(inner, live.get(name), value));
            }
            Value::Object(merged)
        }
        (Merging::Keyed(keys, inner), Some(Value::Array(live)), Value::Array(applied)) => {
            Value::Array(merge_keyed(&keys, inner, live, applied))
        }
        (Merging::Set, Some(Value::Array(live)), Value::Array(applied)) => {
            let added = applied.iter().filter(|item| !live.contains(item));
            Value::Array(live.iter().chain(added).cloned().collect())
        }
        _ => applied.clone(),
    }
}

/// Items in the order applied; those that only the live list has keep their places between them.
fn merge_keyed(keys: &[&str], inner: Slot<'_>, live: &[Value], applied: &[Value]) -> Vec<Value> {
    let steps = |items: &[Value]| -> Vec<Option<String>> {
        items.iter().map(|item| key_step(keys, inner, item)).collect()
    };
    let (live_steps, applied_steps) = (steps(live), steps(applied));
    let only_live = |at: usize| live_steps[at].is_none() || !applied_steps.contains(&live_steps[at]);
    let mut merged = Vec::with_capacity(live.len() + applied.len());
    let mut next = 0;
    for (item, step) in applied.iter().zip(&applied_steps) {
        while next < live.len() && only_live(next) {
            merged.push(live[next].clone());
            next += 1;
        }
        match live_steps
            .iter()
            .position(|other| other.is_some() && other == step)
        {
            Some(at) => {
                merged.push(merge(inner, Some(&live[at]), item));
                next += 1;
            }
            None => merged.push(item.clone()),
        }
    }
    merged.extend(
        (next..live.len())
            .filter(|at| only_live(*at))
            .map(|at| live[at].clone()),
    );
    merged
}

/// Takes the fields in `gone` out of the value, but none that is in `kept`. Says whether nothing is left of it.
pub(super) fn remove(slot: Slot<'_>, value: &mut Value, gone: &FieldSet, kept: &FieldSet) -> bool {
    let nothing = FieldSet::default();
    match (slot.merging(), value) {
        (Merging::Struct(fields), Value::Object(object)) => {
            remove_entries(object, gone, kept, |name| fields.child(name));
            object.is_empty()
        }
        (Merging::Map(inner), Value::Object(object)) => {
            remove_entries(object, gone, kept, |_| inner);
            object.is_empty()
        }
        (Merging::Keyed(keys, inner), Value::Array(items)) => {
            items.retain_mut(|item| {
                let Some(step) = key_step(&keys, inner, item) else {
                    return true;
                };
                let Some(gone) = gone.children.get(&step) else {
                    return true;
                };
                match kept.children.get(&step) {
                    None if gone.member => false,
                    kept => {
                        // The keys stay with the item.
                        let mut gone = gone.clone();
                        for key in &keys {
                            gone.remove(&[&self::step(key)]);
                        }
                        remove(inner, item, &gone, kept.unwrap_or(&nothing));
                        true
                    }
                }
            });
            items.is_empty()
        }
        (Merging::Set, Value::Array(items)) => {
            items.retain(|item| {
                let step = set_step(item);
                !gone.children.contains_key(&step) || kept.children.contains_key(&step)
            });
            items.is_empty()
        }
        _ => false,
    }
}

fn remove_entries<'a>(
    object: &mut Map<String, Value>,
    gone: &FieldSet,
    kept: &FieldSet,
    slot: impl Fn(&str) -> Slot<'a>,
) {
    let nothing = FieldSet::default();
    for (step, gone) in &gone.children {
        let Some(name) = step.strip_prefix("f:") else {
            continue;
        };
        let kept = kept.children.get(step);
        let Some(value) = object.get_mut(name) else {
            continue;
        };
        let slot = slot(name);
        // Nobody sets any of it any more; what defaults there are in a struct have no place without it.
        let whole = gone.member || matches!(slot.merging(), Merging::Struct(_));
        let emptied = match kept {
            None => whole || remove(slot, value, gone, &nothing),
            Some(kept) => {
                remove(slot, value, gone, kept);
                false
            }
        };
        if emptied {
            object.remove(name);
        }
    }
}

/// Every item of a keyed list must have its keys, and no two the same.
pub(super) fn check_keys(slot: Slot<'_>, value: &Value) -> Result<(), String> {
    match (slot.merging(), value) {
        (Merging::Struct(fields), Value::Object(object)) => object.iter().try_for_each(|(name, value)| {
            check_keys(fields.child(name), value).map_err(|problem| format!(".{name}{problem}"))
        }),
        (Merging::Map(inner), Value::Object(object)) => object.iter().try_for_each(|(name, value)| {
            check_keys(inner, value).map_err(|problem| format!(".{name}{problem}"))
        }),
        (Merging::Keyed(keys, inner), Value::Array(items)) => {
            let mut seen = Vec::new();
            for (index, item) in items.iter().enumerate() {
                let step = key_step(&keys, inner, item).ok_or_else(|| {
                    let names: Vec<String> = keys.iter().map(|key| format!("{key:?}")).collect();
                    let names = names.join(", ");
                    format!(
                        ": element {index}: associative list with keys has an element that omits key field {names} \
                         (and doesn't have default value)"
                    )
                })?;
                if seen.contains(&step) {
                    let mut one = FieldSet::default();
                    one.insert(step, FieldSet::leaf());
                    return Err(format!(": duplicate entries for key {}", one.paths().concat()));
                }
                check_keys(inner, item).map_err(|problem| format!("[{index}]{problem}"))?;
                seen.push(step);
            }
            Ok(())
        }
        (Merging::Set, Value::Array(items)) => {
            let duplicate = items
                .iter()
                .enumerate()
                .find(|(index, item)| items[..*index].contains(item));
            duplicate.map_or(Ok(()), |(_, item)| {
                Err(format!(": duplicate entries for key [={item}]"))
            })
        }
        _ => Ok(()),
    }
}
