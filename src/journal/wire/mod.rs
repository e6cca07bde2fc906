//! What the machine's types look like on disk. Every type of the machine that a record or a snapshot carries
//! has a wire type of its own here; [`Mirror`] leads from one to the other and back.
//!
//! One declaration (`mirror!`) gives the wire type and both conversions, and its matches have no wildcard:
//! a variant or field that the machine gains does not compile until it has its place here.
//!
//! Invariant: append only. Variants are encoded by their place, so new ones go to the end; nothing is moved or
//! removed, renaming is free. Fields have no names or lengths on disk, so a type that gains one raises
//! [`RECORD_SCHEMA`](super::record::RECORD_SCHEMA), and its old form is kept for the upcaster.
//! Invariant: machine types know nothing of serde.
//! Invariant: what comes from disk is checked on its way into the machine (names), never trusted.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::base::{
    At, Attempt, BootNo, DestinationNo, EffectId, MessageNo, Ms, RecordNo, SessionName, SessionNo, Wall,
};
use crate::machine::shared_map::SharedMap;
use crate::session::rows;

/// A value on the wire that the machine cannot take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{thing} on the wire is not valid: {why}")]
pub struct WireError {
    /// What kind of thing.
    pub thing: &'static str,
    /// What is wrong with it.
    pub why: String,
}

/// A type of the machine with a form on the wire.
///
/// The wire form borrows from the machine where it can, so that encoding copies no text; what was decoded
/// owns its text and gives it away.
pub trait Mirror: Clone + Sized {
    /// The wire form.
    type Wire<'a>: Serialize + DeserializeOwned
    where
        Self: 'a;

    /// To the wire.
    fn to_wire(&self) -> Self::Wire<'_>;

    /// From the wire.
    ///
    /// # Errors
    /// When the value is none that the machine can hold.
    fn from_wire(wire: Self::Wire<'_>) -> Result<Self, WireError>;

    /// Gives every name, text and wall-clock time in it to `with`, in the order of the wire.
    fn rewrite(&mut self, with: &mut dyn Rewrite);

    /// At least one value of every variant, and the extremes of every field.
    #[cfg(test)]
    fn samples() -> Vec<Self>;
}

/// What is done with the private parts of a value: a name or text that is added to a wire type reaches it without
/// anybody thinking of it.
pub trait Rewrite {
    /// A name, an id or a text.
    fn text(&mut self, text: &mut String);
    /// The name of a session's folder.
    fn session_name(&mut self, name: &mut SessionName);
    /// A wall-clock time.
    fn wall(&mut self, wall: &mut Wall);
}

/// Declares the wire form of a machine type. `struct` and `enum` take fields with the *machine's* types;
/// `units` is for enums without any field.
macro_rules! mirror {
    (struct $wire:ident for $machine:ty { $($field:ident: $ty:ty),* $(,)? }) => {
        #[doc = concat!("Wire form of `", stringify!($wire), "`; its fields say what they mean.")]
        #[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
        #[allow(missing_docs)]
        pub struct $wire<'a> {
            $(pub $field: <$ty as $crate::journal::wire::Mirror>::Wire<'a>,)*
        }

        impl $crate::journal::wire::Mirror for $machine {
            type Wire<'a> = $wire<'a>;

            fn to_wire(&self) -> $wire<'_> {
                let Self { $($field),* } = self;
                $wire { $($field: $crate::journal::wire::Mirror::to_wire($field)),* }
            }

            fn from_wire(wire: $wire<'_>) -> Result<Self, $crate::journal::wire::WireError> {
                let $wire { $($field),* } = wire;
                Ok(Self { $($field: $crate::journal::wire::Mirror::from_wire($field)?),* })
            }

            fn rewrite(&mut self, with: &mut dyn $crate::journal::wire::Rewrite) {
                let Self { $($field),* } = self;
                $($crate::journal::wire::Mirror::rewrite($field, with);)*
            }

            #[cfg(test)]
            fn samples() -> Vec<Self> {
                $(let $field = <$ty as $crate::journal::wire::Mirror>::samples();)*
                let longest = [$($field.len()),*].into_iter().max().unwrap_or(1);
                (0..longest).map(|n| Self { $($field: $field[n % $field.len()].clone()),* }).collect()
            }
        }
    };
    (enum $wire:ident for $machine:ty { $(
        $variant:ident $(( $($place:ident: $tuple:ty),* ))? $({ $($field:ident: $ty:ty),* $(,)? })?
    ),* $(,)? }) => {
        #[doc = concat!("Wire form of `", stringify!($wire), "`; its variants say what they mean.")]
        #[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
        #[allow(missing_docs)]
        pub enum $wire<'a> {
            $($variant
                $(( $(<$tuple as $crate::journal::wire::Mirror>::Wire<'a>),* ))?
                $({ $($field: <$ty as $crate::journal::wire::Mirror>::Wire<'a>),* })?
            ),*
        }

        impl $crate::journal::wire::Mirror for $machine {
            type Wire<'a> = $wire<'a>;

            fn to_wire(&self) -> $wire<'_> {
                match self {
                    $(Self::$variant $(( $($place),* ))? $({ $($field),* })? => $wire::$variant
                        $(( $($crate::journal::wire::Mirror::to_wire($place)),* ))?
                        $({ $($field: $crate::journal::wire::Mirror::to_wire($field)),* })?
                    ),*
                }
            }

            fn from_wire(wire: $wire<'_>) -> Result<Self, $crate::journal::wire::WireError> {
                Ok(match wire {
                    $($wire::$variant $(( $($place),* ))? $({ $($field),* })? => Self::$variant
                        $(( $($crate::journal::wire::Mirror::from_wire($place)?),* ))?
                        $({ $($field: $crate::journal::wire::Mirror::from_wire($field)?),* })?
                    ),*
                })
            }

            fn rewrite(&mut self, with: &mut dyn $crate::journal::wire::Rewrite) {
                let _ = &with;
                match self {
                    $(Self::$variant $(( $($place),* ))? $({ $($field),* })? => {
                        $( $($crate::journal::wire::Mirror::rewrite($place, with);)* )?
                        $( $($crate::journal::wire::Mirror::rewrite($field, with);)* )?
                    })*
                }
            }

            #[cfg(test)]
            fn samples() -> Vec<Self> {
                let mut all = Vec::new();
                $({
                    $($(let $place = <$tuple as $crate::journal::wire::Mirror>::samples();)*)?
                    $($(let $field = <$ty as $crate::journal::wire::Mirror>::samples();)*)?
                    let lengths: &[usize] = &[1 $($(, $place.len())*)? $($(, $field.len())*)?];
                    let longest = lengths.iter().copied().max().unwrap_or(1);
                    all.extend((0..longest).map(|n| {
                        let _ = n;
                        Self::$variant
                            $(( $($place[n % $place.len()].clone()),* ))?
                            $({ $($field: $field[n % $field.len()].clone()),* })?
                    }));
                })*
                all
            }
        }
    };
    (units $wire:ident for $machine:ty { $($variant:ident),* $(,)? }) => {
        #[doc = concat!("Wire form of `", stringify!($wire), "`; its variants say what they mean.")]
        #[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
        #[allow(missing_docs)]
        pub enum $wire { $($variant),* }

        impl $crate::journal::wire::Mirror for $machine {
            type Wire<'a> = $wire;

            fn to_wire(&self) -> $wire {
                match self { $(Self::$variant => $wire::$variant),* }
            }

            fn from_wire(wire: $wire) -> Result<Self, $crate::journal::wire::WireError> {
                Ok(match wire { $($wire::$variant => Self::$variant),* })
            }

            fn rewrite(&mut self, _with: &mut dyn $crate::journal::wire::Rewrite) {}

            #[cfg(test)]
            fn samples() -> Vec<Self> {
                vec![$(Self::$variant),*]
            }
        }
    };
}

pub mod causes;
pub mod digest;
pub mod effect;
pub mod input;
pub mod recorder;
pub mod snapshot;
pub mod state;

#[cfg(test)]
mod tests;

/// Plain values are their own wire form.
macro_rules! plain {
    ($($ty:ty: $($sample:expr),*;)*) => { $(
        impl Mirror for $ty {
            type Wire<'a> = $ty;

            fn to_wire(&self) -> $ty {
                *self
            }

            fn from_wire(wire: $ty) -> Result<Self, WireError> {
                Ok(wire)
            }

            fn rewrite(&mut self, _with: &mut dyn Rewrite) {}

            #[cfg(test)]
            fn samples() -> Vec<Self> {
                vec![$($sample),*]
            }
        }
    )* };
}

plain! {
    bool: false, true;
    u16: 0, 1, u16::MAX;
    u32: 0, 300, u32::MAX;
    u64: 0, 1, 1 << 40, u64::MAX;
    i32: 0, -1, i32::MIN, i32::MAX;
    i64: 0, -1, i64::MIN, i64::MAX;
}

/// Numbers with a type of their own are bare numbers on the wire.
macro_rules! numbers {
    ($($ty:ident: $wire:ty;)*) => { $(
        impl Mirror for $ty {
            type Wire<'a> = $wire;

            fn to_wire(&self) -> $wire {
                self.0
            }

            fn from_wire(wire: $wire) -> Result<Self, WireError> {
                Ok(Self(wire))
            }

            fn rewrite(&mut self, _with: &mut dyn Rewrite) {}

            #[cfg(test)]
            fn samples() -> Vec<Self> {
                <$wire as Mirror>::samples().into_iter().map(Self).collect()
            }
        }
    )* };
}

numbers! {
    At: i64;
    Attempt: u64;
    BootNo: u32;
    DestinationNo: u32;
    MessageNo: u64;
    Ms: u64;
    RecordNo: u64;
    SessionNo: u32;
}

impl Mirror for Wall {
    type Wire<'a> = i64;

    fn to_wire(&self) -> i64 {
        self.0
    }

    fn from_wire(wire: i64) -> Result<Self, WireError> {
        Ok(Self(wire))
    }

    fn rewrite(&mut self, with: &mut dyn Rewrite) {
        with.wall(self);
    }

    #[cfg(test)]
    fn samples() -> Vec<Self> {
        i64::samples().into_iter().map(Self).collect()
    }
}

impl Mirror for String {
    type Wire<'a> = Cow<'a, str>;

    fn to_wire(&self) -> Cow<'_, str> {
        Cow::Borrowed(self)
    }

    fn from_wire(wire: Cow<'_, str>) -> Result<Self, WireError> {
        Ok(wire.into_owned())
    }

    fn rewrite(&mut self, with: &mut dyn Rewrite) {
        with.text(self);
    }

    #[cfg(test)]
    fn samples() -> Vec<Self> {
        vec![String::new(), "m-1".into(), "größer\n\0 ".repeat(9)]
    }
}

impl Mirror for SessionName {
    type Wire<'a> = (Cow<'a, str>, Cow<'a, str>);

    fn to_wire(&self) -> (Cow<'_, str>, Cow<'_, str>) {
        (Cow::Borrowed(self.group()), Cow::Borrowed(self.session()))
    }

    fn from_wire((group, session): (Cow<'_, str>, Cow<'_, str>)) -> Result<Self, WireError> {
        Self::new(group, session).map_err(|why| WireError { thing: "a session's name", why })
    }

    fn rewrite(&mut self, with: &mut dyn Rewrite) {
        with.session_name(self);
    }

    #[cfg(test)]
    fn samples() -> Vec<Self> {
        ["sess-1-aaaaaa", "ä b"].into_iter().filter_map(|name| Self::new("main", name).ok()).collect()
    }
}

impl<T: Mirror> Mirror for Option<T> {
    type Wire<'a>
        = Option<T::Wire<'a>>
    where
        T: 'a;

    fn to_wire(&self) -> Option<T::Wire<'_>> {
        self.as_ref().map(T::to_wire)
    }

    fn from_wire(wire: Option<T::Wire<'_>>) -> Result<Self, WireError> {
        wire.map(T::from_wire).transpose()
    }

    fn rewrite(&mut self, with: &mut dyn Rewrite) {
        if let Some(value) = self {
            value.rewrite(with);
        }
    }

    #[cfg(test)]
    fn samples() -> Vec<Self> {
        std::iter::once(None).chain(T::samples().into_iter().map(Some)).collect()
    }
}

impl<A: Mirror, B: Mirror> Mirror for (A, B) {
    type Wire<'a>
        = (A::Wire<'a>, B::Wire<'a>)
    where
        A: 'a,
        B: 'a;

    fn to_wire(&self) -> (A::Wire<'_>, B::Wire<'_>) {
        (self.0.to_wire(), self.1.to_wire())
    }

    fn from_wire((a, b): (A::Wire<'_>, B::Wire<'_>)) -> Result<Self, WireError> {
        Ok((A::from_wire(a)?, B::from_wire(b)?))
    }

    fn rewrite(&mut self, with: &mut dyn Rewrite) {
        self.0.rewrite(with);
        self.1.rewrite(with);
    }

    #[cfg(test)]
    fn samples() -> Vec<Self> {
        let (a, b) = (A::samples(), B::samples());
        let longest = a.len().max(b.len());
        (0..longest).map(|n| (a[n % a.len()].clone(), b[n % b.len()].clone())).collect()
    }
}

/// Collections are lists on the wire, in their own order.
macro_rules! lists {
    ($($collection:ident<$item:ident $(: $($bound:path),*)?>;)*) => { $(
        impl<$item: Mirror $($(+ $bound)*)?> Mirror for $collection<$item> {
            type Wire<'a>
                = Vec<$item::Wire<'a>>
            where
                $item: 'a;

            fn to_wire(&self) -> Vec<$item::Wire<'_>> {
                self.iter().map($item::to_wire).collect()
            }

            fn from_wire(wire: Vec<$item::Wire<'_>>) -> Result<Self, WireError> {
                wire.into_iter().map($item::from_wire).collect()
            }

            fn rewrite(&mut self, with: &mut dyn Rewrite) {
                let rewritten = |mut item: $item| {
                    item.rewrite(with);
                    item
                };
                *self = std::mem::take(self).into_iter().map(rewritten).collect();
            }

            #[cfg(test)]
            fn samples() -> Vec<Self> {
                vec![Self::default(), $item::samples().into_iter().collect()]
            }
        }
    )* };
}

lists! {
    Vec<T>;
    VecDeque<T>;
    BTreeSet<T: Ord>;
}

/// Maps are lists of pairs in the order of their keys.
macro_rules! maps {
    ($($map:ident),*) => { $(
        impl<K: Mirror + Ord, V: Mirror> Mirror for $map<K, V> {
            type Wire<'a>
                = Vec<(K::Wire<'a>, V::Wire<'a>)>
            where
                K: 'a,
                V: 'a;

            fn to_wire(&self) -> Vec<(K::Wire<'_>, V::Wire<'_>)> {
                self.iter().map(|(key, value)| (key.to_wire(), value.to_wire())).collect()
            }

            fn from_wire(wire: Vec<(K::Wire<'_>, V::Wire<'_>)>) -> Result<Self, WireError> {
                wire.into_iter().map(|(key, value)| Ok((K::from_wire(key)?, V::from_wire(value)?))).collect()
            }

            fn rewrite(&mut self, with: &mut dyn Rewrite) {
                let rewritten = |mut pair: (K, V)| {
                    pair.rewrite(with);
                    pair
                };
                *self = std::mem::take(self).into_iter().map(rewritten).collect();
            }

            #[cfg(test)]
            fn samples() -> Vec<Self> {
                vec![Self::default(), <(K, V)>::samples().into_iter().collect()]
            }
        }
    )* };
}

maps!(BTreeMap, SharedMap);

mirror! {
    // The codec writes a number by its value, so an index of two bytes, as it once was, reads the same.
    struct EffectNo for EffectId { record: RecordNo, index: u32 }
}

mirror! {
    struct Address for rows::Address {
        channel_type: Option<String>,
        platform_id: Option<String>,
        thread_id: Option<String>,
    }
}

mirror! {
    units Outcome for super::record::Outcome { Stepped, Panicked }
}
