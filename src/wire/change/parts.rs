//! The parts of a sample of which changes are told.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess,
    Visitor,
};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

use crate::base::Bytes;
use crate::wire::{
    Gpu, GpuHealth, GpuPath, GpuProcess, GpuVendor, Gpus, HostSample, Lasting, MemoryUse,
    MigInstance, NvLinks, PathKind, PcieLink, ProcessKind, Xid,
};

/// A part of a sample.
pub(super) trait Part: PartialEq {
    /// Writes the change to `after`, which differs.
    fn write<S: Serializer>(&self, after: &Self, to: S) -> Result<S::Ok, S::Error>;

    /// Takes a change over. After an error it must be forgotten.
    fn read<'de, D: Deserializer<'de>>(&mut self, from: D) -> Result<(), D::Error>;
}

/// The change from one to the other.
struct Written<'a, T>(&'a T, &'a T);

impl<T: Part> Serialize for Written<'_, T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.write(self.1, to)
    }
}

/// A change is read onto it.
struct Onto<'a, T>(&'a mut T);

impl<'de, T: Part> DeserializeSeed<'de> for Onto<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        self.0.read(from)
    }
}

/// A change is read onto it, unless it is gone: whether it is still there.
struct UnlessGone<'a, T>(&'a mut T);

impl<'de, T: Part> DeserializeSeed<'de> for UnlessGone<'_, T> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<bool, D::Error> {
        from.deserialize_option(self)
    }
}

impl<'de, T: Part> Visitor<'de> for UnlessGone<'_, T> {
    type Value = bool;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("a change, or null")
    }

    fn visit_none<E>(self) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_unit<E>(self) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<bool, D::Error> {
        self.0.read(from)?;
        Ok(true)
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A member's name, or an index.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// What is always replaced whole.
macro_rules! whole {
    ($($type:ty),* $(,)?) => {$(
        impl Part for $type {
            fn write<S: Serializer>(&self, after: &Self, to: S) -> Result<S::Ok, S::Error> {
                after.serialize(to)
            }

            fn read<'de, D: Deserializer<'de>>(&mut self, from: D) -> Result<(), D::Error> {
                *self = Self::deserialize(from)?;
                Ok(())
            }
        }
    )*};
}

whole!(bool, i32, u32, u64, f32, f64, SmolStr, Bytes, GpuHealth, GpuVendor, PathKind, ProcessKind);

/// A struct: members that are always there, and members that are not on the wire while they are
/// what they are by default.
macro_rules! members {
    ($type:ident { $($always:ident),* ; $($maybe:ident),* $(,)? }) => {
        impl Part for $type {
            fn write<S: Serializer>(&self, after: &Self, to: S) -> Result<S::Ok, S::Error> {
                // All are named here: one that is forgotten would never be told.
                let Self { $($always,)* $($maybe,)* } = self;
                let mut members = to.serialize_map(None)?;
                $(if *$always != after.$always {
                    members.serialize_entry(stringify!($always), &Written($always, &after.$always))?;
                })*
                $(if *$maybe != after.$maybe {
                    if is_default(&after.$maybe) {
                        members.serialize_entry(stringify!($maybe), &())?;
                    } else {
                        members.serialize_entry(stringify!($maybe), &Written($maybe, &after.$maybe))?;
                    }
                })*
                members.end()
            }

            fn read<'de, D: Deserializer<'de>>(&mut self, from: D) -> Result<(), D::Error> {
                struct Members<'a>(&'a mut $type);
                impl<'de> Visitor<'de> for Members<'_> {
                    type Value = ();

                    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
                        to.write_str("the members that differ")
                    }

                    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
                        while let Some(Name(name)) = map.next_key()? {
                            match &*name {
                                $(stringify!($always) => map.next_value_seed(Onto(&mut self.0.$always))?,)*
                                $(stringify!($maybe) => {
                                    if !map.next_value_seed(UnlessGone(&mut self.0.$maybe))? {
                                        self.0.$maybe = Default::default();
                                    }
                                })*
                                // As whole samples are read: what is not known is not missed.
                                _ => {
                                    map.next_value::<IgnoredAny>()?;
                                }
                            }
                        }
                        Ok(())
                    }
                }
                from.deserialize_map(Members(self))
            }
        }
    };
}

members!(HostSample {
    monotonic_ms, gpus;
    gpu_trouble, gpus_age_ms, cpu_percent, load_1m, memory, disk, net_rx_bytes_per_s, net_tx_bytes_per_s, uptime_s,
});
members!(MemoryUse { used, total; });
members!(Gpu {
    index, uuid, name, health;
    vendor, pci_bus_id, memory, bar1, utilisation_percent, memory_utilisation_percent,
    encoder_percent, decoder_percent, temperature_c, slowdown_temperature_c,
    shutdown_temperature_c, thermal_margin_c, power_mw, power_limit_mw, fan_percent, sm_clock_mhz, max_sm_clock_mhz,
    memory_clock_mhz, max_memory_clock_mhz, pstate, throttle_reasons, pcie, nvlink, fabric, ecc_enabled,
    ecc_uncorrected, ecc_corrected, ecc_uncorrected_aggregate, ecc_corrected_aggregate,
    retired_pages, retired_pages_pending, remapped_rows, row_remap_pending, row_remap_failed, xid,
    grave_xid, partition, compute_mode, persistence, mig, mig_instances, nvlink_peers, paths, numa_node,
    processes,
});
members!(PcieLink { ; generation, max_generation, width, max_width, rx_bytes_per_s, tx_bytes_per_s, bytes_per_s });
members!(NvLinks { ; links, active, rx_bytes_per_s, tx_bytes_per_s });
members!(Xid { code, monotonic_ms, count; });
members!(MigInstance { uuid, name; memory });
members!(GpuPath { to, over; });
members!(GpuProcess {
    pid, name;
    command, user, container, unit, kind, memory, sm_percent, encoder_percent, decoder_percent,
    cpu_percent, host_memory, running_s,
});

/// A value that was not there is told whole; that it is gone, a struct says.
impl<T: Part + Serialize + DeserializeOwned> Part for Option<T> {
    fn write<S: Serializer>(&self, after: &Self, to: S) -> Result<S::Ok, S::Error> {
        match (self, after) {
            (Some(before), Some(after)) => before.write(after, to),
            (_, after) => after.serialize(to),
        }
    }

    fn read<'de, D: Deserializer<'de>>(&mut self, from: D) -> Result<(), D::Error> {
        match self {
            Some(value) => value.read(from)?,
            None => *self = Some(T::deserialize(from)?),
        }
        Ok(())
    }
}

fn written_list<T: Part + Serialize, S: Serializer>(
    before: &[T],
    after: &[T],
    to: S,
) -> Result<S::Ok, S::Error> {
    if before.len() != after.len() {
        return after.serialize(to);
    }
    let mut changes = to.serialize_map(None)?;
    for (index, (before, after)) in before.iter().zip(after).enumerate() {
        if before != after {
            changes.serialize_entry(&index, &Written(before, after))?;
        }
    }
    changes.end()
}

impl<T: Part + Serialize + DeserializeOwned> Part for Vec<T> {
    fn write<S: Serializer>(&self, after: &Self, to: S) -> Result<S::Ok, S::Error> {
        written_list(self, after, to)
    }

    fn read<'de, D: Deserializer<'de>>(&mut self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(List(self))
    }
}

impl<T: Part + Clone + Serialize + DeserializeOwned> Part for Lasting<T> {
    fn write<S: Serializer>(&self, after: &Self, to: S) -> Result<S::Ok, S::Error> {
        written_list(self, after, to)
    }

    fn read<'de, D: Deserializer<'de>>(&mut self, from: D) -> Result<(), D::Error> {
        let mut list = std::mem::take(self).into_vec();
        list.read(from)?;
        *self = list.into();
        Ok(())
    }
}

struct List<'a, T>(&'a mut Vec<T>);

impl<'de, T: Part + DeserializeOwned> Visitor<'de> for List<'_, T> {
    type Value = ();

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("a list, or what differs by index")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        self.0.clear();
        while let Some(element) = list.next_element()? {
            self.0.push(element);
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut changes: A) -> Result<(), A::Error> {
        while let Some(Name(index)) = changes.next_key()? {
            let element = index.parse().ok().and_then(|index: usize| self.0.get_mut(index));
            let element = element.ok_or_else(|| A::Error::custom("no such element"))?;
            changes.next_value_seed(Onto(element))?;
        }
        Ok(())
    }
}

/// What else `gpus` can be.
#[derive(Serialize, Deserialize)]
struct Why<T> {
    why: T,
}

#[derive(Serialize, Deserialize)]
struct Hung {
    for_ms: u64,
}

const fn variant(gpus: &Gpus) -> &'static str {
    match gpus {
        Gpus::None { .. } => "none",
        Gpus::Some(_) => "some",
        Gpus::Hung { .. } => "hung",
    }
}

impl Part for Gpus {
    fn write<S: Serializer>(&self, after: &Self, to: S) -> Result<S::Ok, S::Error> {
        let (was, is) = (variant(self), variant(after));
        let mut members = to.serialize_map(None)?;
        if was != is {
            members.serialize_entry(was, &())?;
        }
        match (self, after) {
            (Self::Some(before), Self::Some(after)) => {
                members.serialize_entry(is, &Written(before, after))?;
            }
            (_, Self::Some(after)) => members.serialize_entry(is, after)?,
            (_, Self::None { why }) => members.serialize_entry(is, &Why { why })?,
            (_, Self::Hung { for_ms }) => members.serialize_entry(is, &Hung { for_ms: *for_ms })?,
        }
        members.end()
    }

    fn read<'de, D: Deserializer<'de>>(&mut self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(Variants(self))
    }
}

struct Variants<'a>(&'a mut Gpus);

impl<'de> Visitor<'de> for Variants<'_> {
    type Value = ();

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("what differs of the GPUs")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        // The one that is gone, and whether another one has taken its place.
        let (was, mut gone, mut replaced) = (variant(self.0), false, 0);
        while let Some(Name(name)) = map.next_key()? {
            let there = match (&*name, &mut *self.0) {
                ("some", Gpus::Some(list)) => map.next_value_seed(UnlessGone(list))?,
                ("some", other) => match map.next_value()? {
                    Some(list) => {
                        *other = Gpus::Some(list);
                        true
                    }
                    None => false,
                },
                ("none", other) => match map.next_value()? {
                    Some(Why { why }) => {
                        *other = Gpus::None { why };
                        true
                    }
                    None => false,
                },
                ("hung", other) => match map.next_value()? {
                    Some(Hung { for_ms }) => {
                        *other = Gpus::Hung { for_ms };
                        true
                    }
                    None => false,
                },
                (other, _) => {
                    return Err(A::Error::unknown_variant(other, &["none", "some", "hung"]));
                }
            };
            gone |= !there && name == was;
            replaced += u32::from(there && name != was);
        }
        if u32::from(gone) == replaced {
            Ok(())
        } else {
            Err(A::Error::custom("one of them, not two or none"))
        }
    }
}

/// The line that tells a change, read onto the sample before it.
pub(super) struct ChangeLine<'a>(pub(super) &'a mut Arc<HostSample>);

impl<'de> DeserializeSeed<'de> for ChangeLine<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ChangeLine<'_> {
    type Value = ();

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("a change of the sample before")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut line: A) -> Result<(), A::Error> {
        match line.next_key()? {
            Some(Name(name)) if name == "change" => line.next_value_seed(Since(self.0))?,
            _ => return Err(A::Error::custom("no change")),
        }
        match line.next_key::<IgnoredAny>()? {
            None => Ok(()),
            Some(_) => Err(A::Error::custom("more than a change")),
        }
    }
}

/// What the change is one of, which comes first, and the change.
struct Since<'a>(&'a mut Arc<HostSample>);

impl<'de> DeserializeSeed<'de> for Since<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Since<'_> {
    type Value = ();

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("`since_ms` and `change`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (mut fits, mut applied) = (false, false);
        while let Some(Name(name)) = map.next_key()? {
            match &*name {
                "since_ms" => fits = map.next_value::<u64>()? == self.0.monotonic_ms,
                "change" if fits && !applied => {
                    map.next_value_seed(Onto(Arc::make_mut(self.0)))?;
                    applied = true;
                }
                "change" => return Err(A::Error::custom("a change of another sample")),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        if applied { Ok(()) } else { Err(A::Error::custom("no change")) }
    }
}
