package profiles

import (
	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/internal/strictyaml"
)

// VaultFile is the section vault of site.yaml. Its keys are called as Vault calls
// them.
type VaultFile struct {
	TokenTune  *VaultTuneFile                     `yaml:"token_tune" jsonschema_description:"How long tokens live: the tune of the token mount."`
	TokenRoles strictyaml.Map[VaultTokenRoleFile] `yaml:"token_roles" jsonschema_description:"Token roles, by name: how Nomad up to 1.9 gets tokens for its jobs. From 1.10 on it takes none; during the migration, jwt can stand beside them."`
	Policies   strictyaml.Map[text]               `yaml:"policies" jsonschema_description:"ACL policies, by name, each a file in the site's directory. AUTH_METHOD_ACCESSOR in it stands for the accessor of the mount in jwt."`
	JWT        strictyaml.Map[VaultJWTFile]       `yaml:"jwt" jsonschema_description:"Mounts of the JWT method, by path, where Nomad's tasks log in with their identities: jwt-nomad."`
	Pos        problem.Position                   `yaml:"-"`
}

// VaultTuneFile is how long tokens live.
type VaultTuneFile struct {
	DefaultLeaseTTL text             `yaml:"default_lease_ttl" jsonschema_description:"How long a token lives that doesn't say: 768h, 30d, or in seconds."`
	MaxLeaseTTL     text             `yaml:"max_lease_ttl" jsonschema_description:"How long a token can live at most, renewed or not."`
	Pos             problem.Position `yaml:"-"`
}

// VaultTokenRoleFile is a token role.
type VaultTokenRoleFile struct {
	AllowedPolicies     []text           `yaml:"allowed_policies" jsonschema_description:"Policies that tokens of the role can have."`
	DisallowedPolicies  []text           `yaml:"disallowed_policies" jsonschema_description:"Policies that they can't have."`
	Orphan              flag             `yaml:"orphan" jsonschema_description:"Whether they outlive the token that they were made with."`
	Renewable           flag             `yaml:"renewable" jsonschema_description:"Whether they can be renewed."`
	TokenPeriod         text             `yaml:"token_period" jsonschema_description:"Makes them periodic: renewed within this time, they live on."`
	TokenExplicitMaxTTL text             `yaml:"token_explicit_max_ttl" jsonschema_description:"How long they live at most, whatever the mount says."`
	Pos                 problem.Position `yaml:"-"`
}

// VaultJWTFile is a mount of the JWT method.
type VaultJWTFile struct {
	JWKSURL          text                             `yaml:"jwks_url" jsonschema:"required" jsonschema_description:"Where Vault gets the keys that Nomad signs identities with: https://SERVER:4646/.well-known/jwks.json."`
	JWKSCA           text                             `yaml:"jwks_ca" jsonschema_description:"PEM file in the site's directory, of the CA of Nomad's certificates. Default: the CAs that Vault's machine trusts."`
	JWTSupportedAlgs []text                           `yaml:"jwt_supported_algs" jsonschema_description:"Algorithms of signatures that are taken: [RS256, EdDSA] for Nomad."`
	DefaultRole      text                             `yaml:"default_role" jsonschema_description:"The role of who names none, as Nomad's tasks do."`
	Roles            strictyaml.Map[VaultJWTRoleFile] `yaml:"roles" jsonschema_description:"Roles, by name: who can log in, and what their tokens may."`
	Pos              problem.Position                 `yaml:"-"`
}

// VaultJWTRoleFile is a role of the JWT method.
type VaultJWTRoleFile struct {
	BoundAudiences       []text               `yaml:"bound_audiences" jsonschema_description:"Who identities must be meant for. Default: [vault.io]."`
	UserClaim            text                 `yaml:"user_claim" jsonschema_description:"The claim that Vault knows a workload by. Default: /nomad_job_id."`
	UserClaimJSONPointer flag                 `yaml:"user_claim_json_pointer" jsonschema_description:"Whether user_claim is a JSON pointer. Default: whether it begins with a slash."`
	ClaimMappings        strictyaml.Map[text] `yaml:"claim_mappings" jsonschema_description:"Claims that policies can refer to, and their names there. Default: nomad_namespace, nomad_job_id and nomad_task, each by its own name."`
	TokenPolicies        []text               `yaml:"token_policies" jsonschema_description:"Policies that tokens of the role have."`
	TokenType            text                 `yaml:"token_type" jsonschema:"enum=service,enum=batch,enum=default,enum=default-service,enum=default-batch" jsonschema_description:"Type of the tokens; Nomad renews those of type service."`
	TokenTTL             text                 `yaml:"token_ttl" jsonschema_description:"How long they live."`
	TokenMaxTTL          text                 `yaml:"token_max_ttl" jsonschema_description:"How long they live at most, renewed."`
	TokenPeriod          text                 `yaml:"token_period" jsonschema_description:"Makes them periodic: renewed within this time, they live on."`
	TokenExplicitMaxTTL  text                 `yaml:"token_explicit_max_ttl" jsonschema_description:"How long they live at most, whatever else is said."`
	Pos                  problem.Position     `yaml:"-"`
}
