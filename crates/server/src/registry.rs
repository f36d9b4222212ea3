//! The plugins of this build. A program adds each plugin to the [`Registry`] with one call.

use std::collections::BTreeMap;
use std::sync::Arc;

use quorate_core::membership::Membership;
use quorate_core::plugin::{OpenError, PluginContext};
use quorate_core::resolver::ConflictResolver;
use quorate_core::storage::StorageEngine;
use serde::de::DeserializeOwned;
use toml::Table;

use crate::section::{ConfigError, parse_section};

/// The plugins of a build, by name.
#[derive(Default)]
pub struct Registry {
    storage: BTreeMap<String, ParseStorage>,
    resolvers: BTreeMap<String, OpenResolver>,
    membership: BTreeMap<String, OpenMembership>,
}

/// Function that parses a storage plugin's configuration section. It returns the function that
/// opens the engine with that configuration.
type ParseStorage = Box<dyn Fn(Table) -> Result<OpenStorage, ConfigError>>;
/// Function that opens a storage engine.
type OpenStorage = Box<dyn FnOnce(&PluginContext<'_>) -> Result<Arc<dyn StorageEngine>, ConfigError>>;
type OpenResolver = Box<dyn Fn(&PluginContext<'_>) -> Result<Arc<dyn ConflictResolver>, ConfigError>>;
type OpenMembership = Box<dyn Fn(Table, &PluginContext<'_>) -> Result<Box<dyn Membership>, ConfigError>>;

impl Registry {
    /// Returns a registry of the plugins that come with Quorate.
    pub fn built_in() -> Registry {
        let mut registry = Registry::default();
        registry.storage(quorate_storage_lmdb::NAME, quorate_storage_lmdb::open);
        registry.storage(quorate_storage_memory::NAME, quorate_storage_memory::open);
        registry.resolver(quorate_resolver_siblings::NAME, quorate_resolver_siblings::open);
        registry.resolver(quorate_resolver_lww::NAME, quorate_resolver_lww::open);
        registry.membership(quorate_membership_static::NAME, quorate_membership_static::open);
        registry.membership(quorate_membership_gossip::NAME, quorate_membership_gossip::open);
        registry
    }

    /// Adds a storage engine. `[storage] engine = "NAME"` selects it. The other keys of that
    /// section are the engine's configuration.
    pub fn storage<C: DeserializeOwned + 'static, E: StorageEngine>(
        &mut self,
        name: &str,
        open: impl Fn(C, &PluginContext<'_>) -> Result<E, OpenError> + Clone + 'static,
    ) {
        let parse = move |table: Table| -> Result<OpenStorage, ConfigError> {
            let config: C = parse_section("storage", table)?;
            let open = open.clone();
            Ok(Box::new(move |context| {
                let engine = open(config, context).map_err(|error| refused("[storage]", &error))?;
                Ok(Arc::new(engine))
            }))
        };
        self.storage.insert(name.to_owned(), Box::new(parse));
    }

    /// Adds a conflict resolver. `resolver = "NAME"` in the definition of a bucket selects it.
    pub fn resolver<C: Default, R: ConflictResolver>(
        &mut self,
        name: &str,
        open: impl Fn(C, &PluginContext<'_>) -> Result<R, OpenError> + 'static,
    ) {
        let place = format!("resolver {name:?}:");
        let open = move |context: &PluginContext<'_>| -> Result<Arc<dyn ConflictResolver>, ConfigError> {
            Ok(Arc::new(open(C::default(), context).map_err(|error| refused(&place, &error))?))
        };
        self.resolvers.insert(name.to_owned(), Box::new(open));
    }

    /// Adds a membership plugin. `[membership] plugin = "NAME"` selects it. The other keys of that
    /// section are the plugin's configuration.
    pub fn membership<C: DeserializeOwned, M: Membership>(
        &mut self,
        name: &str,
        open: impl Fn(C, &PluginContext<'_>) -> Result<M, OpenError> + 'static,
    ) {
        let open =
            move |table: Table, context: &PluginContext<'_>| -> Result<Box<dyn Membership>, ConfigError> {
                let opened = open(parse_section("membership", table)?, context);
                Ok(Box::new(opened.map_err(|error| refused("[membership]", &error))?))
            };
        self.membership.insert(name.to_owned(), Box::new(open));
    }

    /// Checks a storage engine's name and configuration without opening it.
    pub(crate) fn check_storage(&self, name: &str, config: Table) -> Result<(), ConfigError> {
        plugin("[storage] engine", name, &self.storage)?(config).map(drop)
    }

    pub(crate) fn open_storage(
        &self,
        name: &str,
        config: Table,
        context: &PluginContext<'_>,
    ) -> Result<Arc<dyn StorageEngine>, ConfigError> {
        plugin("[storage] engine", name, &self.storage)?(config)?(context)
    }

    /// Checks that this build has the resolver `name`. The error message names `setting`, the
    /// configuration key with this value.
    pub(crate) fn check_resolver(&self, setting: &str, name: &str) -> Result<(), ConfigError> {
        plugin(setting, name, &self.resolvers).map(drop)
    }

    /// Opens all resolvers: a bucket that is created while the cluster runs may name any of them.
    pub(crate) fn open_resolvers(
        &self,
        context: &PluginContext<'_>,
    ) -> Result<BTreeMap<String, Arc<dyn ConflictResolver>>, ConfigError> {
        self.resolvers.iter().map(|(name, open)| Ok((name.clone(), open(context)?))).collect()
    }

    pub(crate) fn open_membership(
        &self,
        name: &str,
        config: Table,
        context: &PluginContext<'_>,
    ) -> Result<Box<dyn Membership>, ConfigError> {
        plugin("[membership] plugin", name, &self.membership)?(config, context)
    }
}

/// Converts the error of a plugin that could not be opened. The new message begins with `place`:
/// the plugin's configuration section, or its name.
fn refused(place: &str, error: &OpenError) -> ConfigError {
    ConfigError::new(format!("{place} {error}"))
}

/// Returns the plugin that a setting names, or an error that lists the plugins of this build.
fn plugin<'a, T>(setting: &str, name: &str, plugins: &'a BTreeMap<String, T>) -> Result<&'a T, ConfigError> {
    plugins.get(name).ok_or_else(|| {
        let names: Vec<&str> = plugins.keys().map(String::as_str).collect();
        ConfigError::new(format!(
            "{setting} = {name:?}: this build has no plugin of that name; use one of {}",
            names.join(", ")
        ))
    })
}
