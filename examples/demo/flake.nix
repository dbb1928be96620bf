# What the demo image is made from. The store reads flake.lock for the cache
# key and compares this file; nothing here is evaluated, and nix is not needed.
{
  description = "A small microVM image";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { nixpkgs, ... }:
    {
      packages.x86_64-linux.default = nixpkgs.legacyPackages.x86_64-linux.busybox;
    };
}
