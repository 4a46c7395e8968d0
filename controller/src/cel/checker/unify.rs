//! What the open parameters of types turn out to be.

use std::cell::Cell;
use std::sync::Arc;

use crate::cel::types::{ListType, MapType, Type};

/// What is known of parameters so far.
#[derive(Default)]
pub(super) struct Unifier {
    bindings: Vec<Option<Type>>,
    /// Earlier bindings, for when an overload turns out not to fit.
    trail: Vec<(usize, Option<Type>)>,
    /// Steps that are left. Parameters that stand for each other several times over make types of any size.
    left: Cell<usize>,
}

/// How many steps an expression may take for each expression in it.
const STEPS: usize = 500;

impl Unifier {
    /// Allows the steps of one more expression.
    pub(super) fn allow(&mut self) {
        *self.left.get_mut() += STEPS;
    }

    /// Whether there were too many steps for the types to be right.
    pub(super) fn is_exhausted(&self) -> bool {
        self.left.get() == 0
    }

    /// Where to go back to, and the first parameter after it.
    pub(super) fn mark(&self) -> (usize, usize) {
        (self.trail.len(), self.bindings.len())
    }

    /// Makes so many new parameters.
    pub(super) fn open(&mut self, count: usize) {
        self.bindings.resize(self.bindings.len() + count, None);
    }

    fn set(&mut self, index: usize, of: Type) {
        let before = self.bindings[index].replace(of);
        self.trail.push((index, before));
    }

    /// Forgets what was found out since the trail was this long.
    pub(super) fn undo(&mut self, mark: usize, fresh: usize) {
        while self.trail.len() > mark
            && let Some((index, before)) = self.trail.pop()
        {
            self.bindings[index] = before;
        }
        self.bindings.truncate(fresh);
    }

    pub(super) fn fresh(&mut self) -> Type {
        self.bindings.push(None);
        Type::Parameter(self.bindings.len() - 1)
    }

    /// What a type is at its top.
    pub(super) fn resolve(&self, of: &Type) -> Type {
        let mut of = of;
        self.left.set(self.left.get().saturating_sub(1));
        if self.is_exhausted() {
            return Type::Dynamic;
        }
        while let Type::Parameter(index) = of
            && let Some(Some(bound)) = self.bindings.get(*index)
        {
            self.left.set(self.left.get().saturating_sub(1));
            of = bound;
        }
        of.clone()
    }

    /// The type with all that was found out about its parameters.
    pub(super) fn substitute(&self, of: &Type) -> Type {
        match self.resolve(of) {
            Type::List(list) => Type::list_of(self.substitute(&list.item), list.kind.clone()),
            Type::Map(map) => Type::map(self.substitute(&map.key), self.substitute(&map.value)),
            Type::Optional(of) => Type::optional(self.substitute(&of)),
            Type::Type(of) => Type::Type(Arc::new(self.substitute(&of))),
            of => of,
        }
    }

    /// Whether a value of one type can stand where another is asked for; open parameters become what makes it so.
    pub(super) fn assignable(&mut self, wanted: &Type, given: &Type) -> bool {
        let (to, from) = (self.resolve(wanted), self.resolve(given));
        match (&to, &from) {
            (Type::Parameter(a), Type::Parameter(b)) if a == b => true,
            (Type::Parameter(index), other) | (other, Type::Parameter(index)) => {
                if self.occurs(*index, other) {
                    return false;
                }
                self.set(*index, other.clone());
                true
            }
            (_, Type::Dynamic) => {
                self.widen(wanted, &Type::Dynamic);
                true
            }
            (Type::Dynamic, _) | (Type::Null, Type::Null) | (Type::Type(_), Type::Type(_)) => true,
            (Type::Null, other) if other.is_nullable() => {
                self.widen(wanted, other);
                true
            }
            (other, Type::Null) => other.is_nullable(),
            (Type::List(a), Type::List(b)) => self.assignable(&a.item, &b.item),
            (Type::Map(a), Type::Map(b)) => {
                self.assignable(&a.key, &b.key) && self.assignable(&a.value, &b.value)
            }
            (Type::Optional(a), Type::Optional(b)) => self.assignable(a, b),
            (a, b) => a == b,
        }
    }

    /// Makes what a parameter was found to be more general.
    fn widen(&mut self, parameter: &Type, to: &Type) {
        let &Type::Parameter(mut index) = parameter else {
            return;
        };
        while let Some(Some(Type::Parameter(next))) = self.bindings.get(index) {
            index = *next;
        }
        self.set(index, to.clone());
    }

    fn occurs(&self, index: usize, of: &Type) -> bool {
        match self.resolve(of) {
            Type::Parameter(other) => other == index,
            Type::List(list) => self.occurs(index, &list.item),
            Type::Map(map) => self.occurs(index, &map.key) || self.occurs(index, &map.value),
            Type::Optional(of) | Type::Type(of) => self.occurs(index, &of),
            _ => false,
        }
    }
}

/// Gives the parameters of a signature places of their own.
pub(super) fn shift(of: &Type, by: usize) -> Type {
    match of {
        Type::Parameter(index) => Type::Parameter(index + by),
        Type::List(list) => Type::List(Arc::new(ListType {
            item: shift(&list.item, by),
            kind: list.kind.clone(),
        })),
        Type::Map(map) => Type::Map(Arc::new(MapType {
            key: shift(&map.key, by),
            value: shift(&map.value, by),
        })),
        Type::Optional(of) => Type::optional(shift(of, by)),
        Type::Type(of) => Type::Type(Arc::new(shift(of, by))),
        of => of.clone(),
    }
}
