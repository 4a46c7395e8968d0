//! Sets of fields, and their form in `fieldsV1`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde_json::{Map, Value};

/// A set of field paths, as a tree. Steps are named as in `fieldsV1`: `f:name`, `k:{"name":"c"}`, `v:"x"`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FieldSet {
    /// The path that leads here is in the set.
    pub(super) member: bool,
    pub(super) children: BTreeMap<String, FieldSet>,
}

impl FieldSet {
    pub(super) fn leaf() -> Self {
        Self {
            member: true,
            children: BTreeMap::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }

    pub(super) fn insert(&mut self, step: String, child: Self) {
        if !child.is_empty() {
            self.join(step, child);
        }
    }

    fn join(&mut self, step: String, child: Self) {
        match self.children.entry(step) {
            // Moved as it is: most sets are built from disjoint ones.
            Entry::Vacant(place) => {
                place.insert(child);
            }
            Entry::Occupied(mut place) => place.get_mut().union(child),
        }
    }

    pub(super) fn union(&mut self, other: Self) {
        self.member |= other.member;
        for (step, child) in other.children {
            self.join(step, child);
        }
    }

    /// Takes out every path that is in `other`.
    pub(super) fn subtract(&mut self, other: &Self) {
        self.member &= !other.member;
        self.children.retain(|step, child| {
            if let Some(other) = other.children.get(step) {
                child.subtract(other);
            }
            !child.is_empty()
        });
    }

    /// The paths in both.
    pub(super) fn intersection(&self, other: &Self) -> Self {
        let children = self.children.iter().filter_map(|(step, child)| {
            let common = child.intersection(other.children.get(step)?);
            (!common.is_empty()).then(|| (step.clone(), common))
        });
        Self {
            member: self.member && other.member,
            children: children.collect(),
        }
    }

    /// Takes out the path and everything below it.
    pub(super) fn remove(&mut self, path: &[&str]) {
        if let [step, rest @ ..] = path {
            if rest.is_empty() {
                self.children.remove(*step);
            } else if let Some(child) = self.children.get_mut(*step) {
                child.remove(rest);
                if child.is_empty() {
                    self.children.remove(*step);
                }
            }
        }
    }

    /// Keeps only what is at or below the path.
    pub(super) fn retain_only(&mut self, paths: &[&[&str]]) {
        let mut kept = Self::default();
        for path in paths {
            let mut node = &*self;
            let mut found = true;
            for step in *path {
                match node.children.get(*step) {
                    Some(child) => node = child,
                    None => found = false,
                }
            }
            if found {
                let mut subtree = node.clone();
                for step in path.iter().rev() {
                    let mut parent = Self::default();
                    parent.insert((*step).to_owned(), subtree);
                    subtree = parent;
                }
                kept.union(subtree);
            }
        }
        *self = kept;
    }

    /// Every path of the set, printed as conflicts name them: `.spec.containers[name="c"].image`.
    pub(super) fn paths(&self) -> Vec<String> {
        let mut found = Vec::new();
        self.visit(&mut String::new(), &mut found);
        found
    }

    fn visit(&self, path: &mut String, found: &mut Vec<String>) {
        if self.member {
            found.push(path.clone());
        }
        for (step, child) in &self.children {
            let length = path.len();
            match step.split_once(':') {
                Some(("f", name)) => {
                    path.push('.');
                    path.push_str(name);
                }
                Some(("k", keys)) => {
                    let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                    let keys: Vec<String> =
                        keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
                    path.extend(["[", &keys.join(","), "]"]);
                }
                Some(("v", value)) => path.extend(["[=", value, "]"]),
                _ => path.extend(["[", step, "]"]),
            }
            child.visit(path, found);
            path.truncate(length);
        }
    }

    /// The `fieldsV1` form.
    pub(super) fn into_json(self) -> Value {
        let mut object = Map::new();
        if self.member && !self.children.is_empty() {
            object.insert(".".to_owned(), Value::Object(Map::new()));
        }
        for (step, child) in self.children {
            object.insert(step, child.into_json());
        }
        Value::Object(object)
    }

    /// Whether the set has a path in common with one in the `fieldsV1` form.
    pub(super) fn meets(&self, json: &Value) -> bool {
        let Some(object) = json.as_object() else {
            return false;
        };
        let is_member = object.is_empty() || object.contains_key(".");
        (self.member && is_member)
            || self
                .children
                .iter()
                .any(|(step, child)| object.get(step).is_some_and(|json| child.meets(json)))
    }

    /// Reads the `fieldsV1` form; what is malformed is left out.
    pub(super) fn from_json(value: &Value) -> Self {
        let mut set = Self::default();
        for (step, child) in value.as_object().into_iter().flatten() {
            if step == "." {
                set.member = true;
                continue;
            }
            let mut child_set = Self::from_json(child);
            if child_set.children.is_empty() {
                child_set.member = true;
            }
            set.children.insert(step.clone(), child_set);
        }
        set
    }
}
