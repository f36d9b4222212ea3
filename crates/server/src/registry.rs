//! What this build contains: a plain value, one line a plugin.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use quorate_core::Member;
use quorate_core::membership::Membership;
use quorate_core::resolver::ConflictResolver;
use quorate_core::storage::{StorageEngine, StorageError};
use serde::de::DeserializeOwned;
use toml::Table;

use crate::config::{ConfigError, section};

/// Reads a plugin's section; what it returns opens the engine.
type OpenStorage = Box<dyn Fn(Table) -> Result<StorageOpener, ConfigError>>;
type StorageOpener = Box<dyn FnOnce(&Path) -> Result<Arc<dyn StorageEngine>, ConfigError>>;
type OpenResolver = Box<dyn Fn() -> Arc<dyn ConflictResolver>>;
type OpenMembership = Box<dyn Fn(Table, &Member) -> Result<Box<dyn Membership>, ConfigError>>;

/// The plugins of a build, by name.
#[derive(Default)]
pub struct Registry {
    storage: BTreeMap<String, OpenStorage>,
    resolvers: BTreeMap<String, OpenResolver>,
    membership: BTreeMap<String, OpenMembership>,
}

impl Registry {
    /// The plugins that come with Quorate.
    pub fn built_in() -> Registry {
        let mut registry = Registry::default();
        registry.storage(quorate_storage_lmdb::NAME, quorate_storage_lmdb::open);
        registry.storage(quorate_storage_memory::NAME, |config, _| quorate_storage_memory::open(config));
        registry.resolver(quorate_resolver_siblings::NAME, quorate_resolver_siblings::open);
        registry.resolver(quorate_resolver_lww::NAME, quorate_resolver_lww::open);
        registry.membership(quorate_membership_static::NAME, quorate_membership_static::open);
        registry.membership(quorate_membership_gossip::NAME, quorate_membership_gossip::open);
        registry
    }

    /// Adds a storage engine: `[storage] engine = "NAME"`. The rest of the section is its configuration.
    pub fn storage<C: DeserializeOwned + 'static, E: StorageEngine>(
        &mut self,
        name: &str,
        open: impl Fn(C, &Path) -> Result<E, StorageError> + Clone + 'static,
    ) {
        let read = move |table: Table| -> Result<StorageOpener, ConfigError> {
            let config: C = section("storage", table)?;
            let open = open.clone();
            Ok(Box::new(move |folder| {
                let engine = open(config, folder);
                Ok(Arc::new(engine.map_err(|error| ConfigError::new(format!("[storage] {error}")))?))
            }))
        };
        self.storage.insert(name.to_owned(), Box::new(read));
    }

    /// Adds a conflict resolver: `[buckets.X] resolver = "NAME"`.
    pub fn resolver<C: Default, R: ConflictResolver>(&mut self, name: &str, open: impl Fn(C) -> R + 'static) {
        self.resolvers.insert(name.to_owned(), Box::new(move || Arc::new(open(C::default()))));
    }

    /// Adds a membership: `[membership] plugin = "NAME"`. The rest of the section is its configuration.
    pub fn membership<C: DeserializeOwned, M: Membership>(
        &mut self,
        name: &str,
        open: impl Fn(C, &Member) -> Result<M, String> + 'static,
    ) {
        let open = move |table: Table, this: &Member| -> Result<Box<dyn Membership>, ConfigError> {
            Ok(Box::new(open(section("membership", table)?, this).map_err(ConfigError::new)?))
        };
        self.membership.insert(name.to_owned(), Box::new(open));
    }

    pub(crate) fn open_storage(
        &self,
        name: &str,
        config: Table,
        folder: &Path,
    ) -> Result<Arc<dyn StorageEngine>, ConfigError> {
        find("[storage] engine", name, &self.storage)?(config)?(folder)
    }

    /// All resolvers: a bucket that is created while the cluster runs may name any.
    pub(crate) fn open_resolvers(&self) -> BTreeMap<String, Arc<dyn ConflictResolver>> {
        self.resolvers.iter().map(|(name, open)| (name.clone(), open())).collect()
    }

    /// Checks a resolver's name.
    pub(crate) fn check_resolver(&self, place: &str, name: &str) -> Result<(), ConfigError> {
        find(place, name, &self.resolvers).map(drop)
    }

    pub(crate) fn open_membership(
        &self,
        name: &str,
        config: Table,
        this: &Member,
    ) -> Result<Box<dyn Membership>, ConfigError> {
        find("[membership] plugin", name, &self.membership)?(config, this)
    }

    /// Checks a storage engine's name and configuration without opening it.
    pub(crate) fn check_storage(&self, name: &str, config: Table) -> Result<(), ConfigError> {
        find("[storage] engine", name, &self.storage)?(config).map(drop)
    }
}

fn find<'a, T>(place: &str, name: &str, known: &'a BTreeMap<String, T>) -> Result<&'a T, ConfigError> {
    known.get(name).ok_or_else(|| {
        let names: Vec<&str> = known.keys().map(String::as_str).collect();
        ConfigError::new(format!("{place} = {name:?}: this build has {}", names.join(", ")))
    })
}
